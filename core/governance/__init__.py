"""The governance protocol: ``governance.proto`` and what ``make proto`` generates from it."""
