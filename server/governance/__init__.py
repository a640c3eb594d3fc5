"""What the coordinator keeps and serves beside Flower: enrolment, studies, decisions, receipts, ledger heads."""
