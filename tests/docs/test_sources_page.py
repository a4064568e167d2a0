import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_sources_page_lists_exactly_the_keys_in_the_code() -> None:
    spec = importlib.util.spec_from_file_location("make_sources", DOCS / "make_sources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "sources.md").read_text(encoding="utf-8")
    assert page == module.render(), "run python docs/make_sources.py"
