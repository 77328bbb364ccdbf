"""The judge: the invariants of a history, and their check on an observed one.

    history     the observations, as values, and the meaning of the journal's records by the contract
    charges     of these, a charge: the rows that a view must show of it
    streams     the operations of a charge and its money, by the journal
    settlement  what the bank moved and was asked for, against these
    checker     which invariant broke, and where
    files       readers of the servers' files and of a bank's statement
    cli         the operator's program: it checks a live system's files and prints the violations

It shares nothing with the servers but the contract in protos/, so that servers and judge cannot share a mistake. It is
installed with them. The proof and the tests use it, and it depends on neither.
"""
