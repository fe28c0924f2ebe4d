"""MQTT 5 client and durable outbox: the node's connection to its broker.

Rules:
- No other package speaks MQTT on the data path.
- Nothing here depends on frames, stages or pipelines.
"""

from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.bus.packets import Publication
from hedgerow.bus.properties import Property, encode_properties

__all__ = ["Client", "ClientOptions", "Message", "Property", "Publication", "encode_properties"]
