"""Other people's tools on Dooly's latencies: exporters of the files they read, drop-in predictors, and an HTTP service.

Each adapter meets a foreign contract. Exporters stand here; `dooly.adapters.vidur` and `dooly.adapters.sglang` are predictors to
import in those tools' processes, and `dooly.adapters.service` is what `dooly serve` runs.
"""

from dooly.adapters._blis import export_blis
from dooly.adapters._llmservingsim import export_llmservingsim
from dooly.adapters._planner import export_planner
from dooly.adapters._result import ExportResult
from dooly.adapters._vidur_profiles import export_vidur

__all__ = ["ExportResult", "export_blis", "export_llmservingsim", "export_planner", "export_vidur"]
