"""What froze when and what it saved: booked while training goes on, then shown as table, CSV and picture."""
