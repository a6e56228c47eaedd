"""What a trained model looks at, and where it is wrong."""

from jaxfast.interpret.classification import Interpretation as Interpretation
from jaxfast.interpret.classification import TopLoss as TopLoss
from jaxfast.interpret.heatmap import Heatmap as Heatmap
from jaxfast.interpret.heatmap import grad_cam as grad_cam
from jaxfast.interpret.intervals import Interval as Interval
from jaxfast.interpret.intervals import check_level as check_level
from jaxfast.interpret.intervals import confidence_interval as confidence_interval
from jaxfast.interpret.intervals import wilson as wilson
from jaxfast.interpret.multi_label import LabelInterpretation as LabelInterpretation
from jaxfast.interpret.multi_label import LabelReport as LabelReport
from jaxfast.interpret.multi_label import TopLabelLoss as TopLabelLoss
from jaxfast.interpret.multi_label import label_report as label_report
from jaxfast.interpret.segmentation import SegmentationInterpretation as SegmentationInterpretation
from jaxfast.interpret.segmentation import TopMaskLoss as TopMaskLoss
from jaxfast.interpret.thresholds import best_thresholds as best_thresholds

INTERPRETATIONS = {
    "single_label": Interpretation,
    "multi_label": LabelInterpretation,
    "segmentation": SegmentationInterpretation,
}
"""What `Learner.interpret` makes, by the task of its data."""
