"""An index from one space to the next without downtime: re-embedding, dual writes, and a bridge in between."""

from alignet_client.migration.bridge import Bridge, Bridged, Measured, Recall, fit, map_documents
from alignet_client.migration.dual import Dual, NotComplete
from alignet_client.migration.reembed import Reembedded, lacking, reembed

__all__ = [
    "Bridge",
    "Bridged",
    "Dual",
    "Measured",
    "NotComplete",
    "Recall",
    "Reembedded",
    "fit",
    "lacking",
    "map_documents",
    "reembed",
]
