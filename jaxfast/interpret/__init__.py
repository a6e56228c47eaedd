"""What a trained model looks at, and where it is wrong."""

from jaxfast.interpret.classification import Interpretation as Interpretation
from jaxfast.interpret.classification import TopLoss as TopLoss
from jaxfast.interpret.heatmap import Heatmap as Heatmap
from jaxfast.interpret.heatmap import grad_cam as grad_cam
from jaxfast.interpret.intervals import Interval as Interval
from jaxfast.interpret.intervals import check_level as check_level
from jaxfast.interpret.intervals import confidence_interval as confidence_interval
from jaxfast.interpret.intervals import wilson as wilson
