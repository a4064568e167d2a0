"""Rare targets: losses, sampling, statistics, metrics, and what the optimizer sees of the signal."""

from rightbatch.sparse.correct import PriorCorrected as PriorCorrected
from rightbatch.sparse.correct import Recalibrated as Recalibrated
from rightbatch.sparse.correct import add_offsets as add_offsets
from rightbatch.sparse.correct import correct_logits as correct_logits
from rightbatch.sparse.correct import correct_probabilities as correct_probabilities
from rightbatch.sparse.correct import fit_offsets as fit_offsets
from rightbatch.sparse.diagnose import measure_signal as measure_signal
from rightbatch.sparse.losses import IGNORE_INDEX as IGNORE_INDEX
from rightbatch.sparse.losses import cross_entropy as cross_entropy
from rightbatch.sparse.losses import focal_gradient_factor as focal_gradient_factor
from rightbatch.sparse.losses import focal_loss as focal_loss
from rightbatch.sparse.losses import logit_adjusted_loss as logit_adjusted_loss
from rightbatch.sparse.metrics import average_precision as average_precision
from rightbatch.sparse.metrics import calibration as calibration
from rightbatch.sparse.metrics import top_k_precision as top_k_precision
from rightbatch.sparse.priors import ClassCounts as ClassCounts
from rightbatch.sparse.priors import count_classes as count_classes
from rightbatch.sparse.priors import prior_bias_ as prior_bias_
from rightbatch.sparse.statistics import law_of_labels as law_of_labels
from rightbatch.sparse.statistics import law_of_windows as law_of_windows
from rightbatch.sparse.windows import LabelledSequences as LabelledSequences
from rightbatch.sparse.windows import RandomWindows as RandomWindows
from rightbatch.sparse.windows import TiledWindows as TiledWindows
