"""The read side: follows the journal's feed, keeps a view of it in SQLite, and answers queries from that.

projection   pure: events to rows
view         the rows and the checkpoint, in one SQLite file
subscriber   follows the feed, verifies every record, applies it to the view
feed         the feed over gRPC
waiting      who waits for a position or for a charge
api          QueryService
"""
