"""Procedures that stop sampling early, at the same guarantee as a fixed number of samples.

- ``plans``: is the radius at least r? :func:`stopping_plan` designs an exact sequential test.
- ``radii``: :func:`certify_radius` and :func:`certify_radii` run it, for one radius or several at once.
- ``tolerance``: which radius? :func:`tolerance_plan` and :func:`certify_tolerance` stop when the radius in hand is
  nearly what the whole budget could still give.
- ``prediction``: :func:`predict_early`.

Plans are NumPy float64 on the host; the functions that take a key and a model are pure JAX. What each decides can also
be read from stored counts (``verdicts_from_counts``, ``tolerance_from_counts``), as sweeps do.
"""

from jaxsmooth.stopping.plans import OperatingCharacteristics as OperatingCharacteristics
from jaxsmooth.stopping.plans import StoppingPlan as StoppingPlan
from jaxsmooth.stopping.plans import crossing_probability as crossing_probability
from jaxsmooth.stopping.plans import operating_characteristics as operating_characteristics
from jaxsmooth.stopping.plans import stopping_plan as stopping_plan
from jaxsmooth.stopping.plans import stopping_plans as stopping_plans
from jaxsmooth.stopping.prediction import EarlyPrediction as EarlyPrediction
from jaxsmooth.stopping.prediction import early_prediction_from_counts as early_prediction_from_counts
from jaxsmooth.stopping.prediction import predict_early as predict_early
from jaxsmooth.stopping.prediction import prediction_looks as prediction_looks
from jaxsmooth.stopping.radii import CERTIFIED as CERTIFIED
from jaxsmooth.stopping.radii import GUARANTEES as GUARANTEES
from jaxsmooth.stopping.radii import NOT_CERTIFIED as NOT_CERTIFIED
from jaxsmooth.stopping.radii import UNDECIDED as UNDECIDED
from jaxsmooth.stopping.radii import RadiusCertificate as RadiusCertificate
from jaxsmooth.stopping.radii import Verdict as Verdict
from jaxsmooth.stopping.radii import certify_radii as certify_radii
from jaxsmooth.stopping.radii import certify_radius as certify_radius
from jaxsmooth.stopping.radii import verdicts_from_counts as verdicts_from_counts
from jaxsmooth.stopping.tolerance import ToleranceCertificate as ToleranceCertificate
from jaxsmooth.stopping.tolerance import TolerancePlan as TolerancePlan
from jaxsmooth.stopping.tolerance import ToleranceState as ToleranceState
from jaxsmooth.stopping.tolerance import certify_tolerance as certify_tolerance
from jaxsmooth.stopping.tolerance import tolerance_from_counts as tolerance_from_counts
from jaxsmooth.stopping.tolerance import tolerance_plan as tolerance_plan
