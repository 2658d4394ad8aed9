"""An HTTP service of latencies: `/predict` and `/predict/bulk` as llm-d's predictor has them, and `/step` for batches.

It needs FastAPI, uvicorn and prometheus-client, which `pip install 'dooly-llm[serve]'` brings.
"""

from dooly.adapters.service._app import create_app
from dooly.adapters.service._guard import ServiceLimits
from dooly.adapters.service._run import run_service
from dooly.adapters.service._served_model import ModelSlot, ServedModel
from dooly.adapters.service._server_state import ServerLatency, ServerState, Traffic, server_latencies

__all__ = [
    "ModelSlot",
    "ServedModel",
    "ServerLatency",
    "ServerState",
    "ServiceLimits",
    "Traffic",
    "create_app",
    "run_service",
    "server_latencies",
]
