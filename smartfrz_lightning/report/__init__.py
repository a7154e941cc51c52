"""What froze when and what it saved: booked while training goes on, then shown as table, CSV and picture."""

from smartfrz_lightning.report.ledger import Ledger
from smartfrz_lightning.report.show import plot_timeline, timeline_table
from smartfrz_lightning.report.timeline import FreezeEvent, Timeline

__all__ = ["FreezeEvent", "Ledger", "Timeline", "plot_timeline", "timeline_table"]
