"""What ``twistd`` finds: ``twistd -n relay`` and one command a tier."""

from twisted.application.service import ServiceMaker

relay = ServiceMaker(
    "relay", "relay.tiers.cluster", "A whole live relay on this machine, or one node of a cluster file.", "relay"
)
relay_origin = ServiceMaker(
    "relay-origin", "relay.tiers.origin", "RTMP live relay: encoders publish here.", "relay-origin"
)
relay_distributor = ServiceMaker(
    "relay-distributor", "relay.tiers.distributor", "RTMP live relay: stores and hands on streams.", "relay-distributor"
)
relay_aggregator = ServiceMaker(
    "relay-aggregator", "relay.tiers.aggregator", "RTMP live relay: serves viewers from every pair.", "relay-aggregator"
)
relay_balancer = ServiceMaker(
    "relay-balancer", "relay.tiers.balancer", "RTMP live relay: splices viewers to aggregators.", "relay-balancer"
)
