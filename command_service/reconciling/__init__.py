"""Reconciliation: whether a bank's statement and the journal tell of the same money. It changes nothing.

    lines of the statement     one source a form of statement (`command_service.bank.statement`)
    entries of the journal     one an operation, as far as it has come (`entries`)
    both on disk               a temporary SQLite file, in the order of references (`books`)
    what a pair means          pure (`matching`): matched, or one of the findings

1. A line and an entry are a pair if they have one reference of ours; a line without a reference, if they have one transaction
   id of the bank's. Nothing is guessed by amount or time.
2. *The day of a movement is the bank's*: a pair counts on the day that the line is dated, wherever the journal has it. So a
   charge that the bank executed at 23:59:59.9 and the journal stored at 00:00 counts once, and in one day only.
3. A line or an entry without a partner counts by its own time. An entry is *missing at the bank* only if its line must be in
   what was read: the money moved after the journal had stored its token and before it stored the outcome, and the statement
   covers all of that time. If the statement begins or ends in between, the entry is *at the edge*: no difference, and not
   certain either. A bank that is asked itself is asked for an hour more at both ends; of files, pass the next day's too.
4. The statement is read first, and the journal after it. What is newer than the begin of the reading is outside of the span. So
   a server may be at work meanwhile.
5. An operation whose outcome is not known counts as not moved here. That is a finding only if the bank has moved it.

Memory does not grow with the number of lines: each side is streamed to the disk, and both are merged from there.
"""
