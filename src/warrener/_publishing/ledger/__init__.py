"""The ledger: the pure account of deliveries. No I/O, clock, randomness or await in this package."""

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.flights import Ticket
from warrener._publishing.ledger.ledger import Ledger
from warrener._publishing.ledger.outcomes import Verdict, fold, verdict_of
from warrener._publishing.ledger.settlement import Counters

__all__ = ["Counters", "Delivery", "Ledger", "Ticket", "Verdict", "fold", "verdict_of"]
