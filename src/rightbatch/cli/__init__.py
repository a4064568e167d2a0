"""The command line; torch is imported only by the verbs that measure or train."""

from rightbatch.cli.app import main as main
