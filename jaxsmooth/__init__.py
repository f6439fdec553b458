"""jaxsmooth: certified radii for any JAX classifier by randomized smoothing."""

from jaxsmooth.certification import ABSTAIN as ABSTAIN
from jaxsmooth.certification import Certificate as Certificate
from jaxsmooth.certification import Prediction as Prediction
from jaxsmooth.certification import certificate_from_counts as certificate_from_counts
from jaxsmooth.certification import certify as certify
from jaxsmooth.certification import predict as predict
from jaxsmooth.certification import prediction_from_counts as prediction_from_counts
from jaxsmooth.confidence import clopper_pearson as clopper_pearson
from jaxsmooth.noise import Gaussian as Gaussian
from jaxsmooth.norms import ball_contains as ball_contains
from jaxsmooth.norms import convert_radius as convert_radius
from jaxsmooth.norms import norm_constant as norm_constant
from jaxsmooth.radius import certified_radius as certified_radius
from jaxsmooth.radius import half_space_contains as half_space_contains
from jaxsmooth.radius import likelihood_ratio as likelihood_ratio
from jaxsmooth.radius import probability_after_shift as probability_after_shift
from jaxsmooth.sampling import sample_counts as sample_counts
from jaxsmooth.stopping import StoppingPlan as StoppingPlan
from jaxsmooth.stopping import certify_radius as certify_radius
from jaxsmooth.stopping import stopping_plan as stopping_plan
from jaxsmooth.validation import InputError as InputError
