"""The read side: follows the journal's feed, keeps a view of it in SQLite, and answers queries from it.

schema       the view's tables: columns, keys, and every statement
words        the contract's words, looked up once
course       pure: what its events make of a charge
projection   pure: from a batch of events to the rows that change
view         rows and checkpoint, written a batch at a time and read by queries; view_file: the file that holds them
lookup       the queries' reads, of one tenant's rows only
subscriber   follows the feed, verifies every record, applies it to the view; needs no grpc
feed         the feed over gRPC
waiting      calls that wait for a position, or for a charge to change
mirrors      a journal as it is shown: view, subscriber and waiting calls; and no journal by two
api          QueryService; with messages (from rows), pages (page tokens) and errors (of fields)
settings     the settings
parts        the parts of a server, one method a part; serving puts them together
"""
