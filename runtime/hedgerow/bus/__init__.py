"""The bus: the node's link to its broker.

Rules:
- This is the only package that speaks MQTT on the data path, and the only one that knows how.
- Nothing here knows what a frame, a stage or a pipeline is.
"""

from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.bus.packets import Publication
from hedgerow.bus.properties import Property, encode_properties

__all__ = ["Client", "ClientOptions", "Message", "Property", "Publication", "encode_properties"]
