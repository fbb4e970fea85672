"""The ledger: the pure account of deliveries. No I/O, clock, randomness or await in this package."""

from warrener._publishing.ledger.ledger import Counters, Delivery, Ledger, Verdict, fold, verdict_of

__all__ = ["Counters", "Delivery", "Ledger", "Verdict", "fold", "verdict_of"]
