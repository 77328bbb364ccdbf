"""The command server: takes charges, keeps the journal, calls the bank, feeds the readers."""
