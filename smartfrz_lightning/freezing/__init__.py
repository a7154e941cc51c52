"""What stopping means: freeze and thaw, and what wrappers and compiled code need for it."""
