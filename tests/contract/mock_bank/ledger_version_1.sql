-- A ledger as the mock bank of version 1 left it, with charges alone. Its open tokens live until the year 2100.
BEGIN TRANSACTION;
CREATE TABLE transactions (
        number         INTEGER PRIMARY KEY,                                -- the order in which they were opened
        token          TEXT    NOT NULL UNIQUE,
        reference      TEXT    NOT NULL,
        kind           TEXT    NOT NULL CHECK (kind IN ('charge')),        -- refunds will be transactions too
        card           TEXT    NOT NULL,
        amount         INTEGER NOT NULL CHECK (amount > 0),                -- in minor units
        currency       TEXT    NOT NULL,
        state          TEXT    NOT NULL CHECK (state IN ('created', 'executed', 'declined', 'expired')),
        opened_at      INTEGER NOT NULL,
        expires_at     INTEGER NOT NULL,
        closed_at      INTEGER          CHECK ((closed_at IS NULL) = (state = 'created')),
        transaction_id TEXT    UNIQUE   CHECK ((transaction_id IS NOT NULL) = (state = 'executed')),
        movement       INTEGER UNIQUE   CHECK ((movement IS NOT NULL) = (state = 'executed')),  -- order of execution
        reason         TEXT             CHECK ((reason IS NOT NULL) = (state = 'declined'))
    ) STRICT
    ;
INSERT INTO "transactions" VALUES(1,'ttok_9d50d7671461f0dd85b1ffa9ed07bb9e','executed','charge','tok_visa',1250,'EUR','executed',1795941223903,1795942123903,1795941223907,'txn_ff599d0f491d57e82b996116687ba517',1,NULL);
INSERT INTO "transactions" VALUES(2,'ttok_9ce5b532bdddc364bc5bab4de548d4e6','declined','charge','tok_declined',1250,'EUR','declined',1795941223909,1795942123909,1795941223912,NULL,NULL,'card_declined');
INSERT INTO "transactions" VALUES(3,'ttok_8d6cbc5e5c448caa7a4e128a3db27b3a','expired','charge','tok_visa',1250,'EUR','expired',1795941223915,1795942123915,1795941223920,NULL,NULL,NULL);
INSERT INTO "transactions" VALUES(4,'ttok_ab0a5416a3deadc5f9ebf39fc363839c','expired','charge','tok_visa',1250,'EUR','created',1795941223923,4102444800000,NULL,NULL,NULL,NULL);
INSERT INTO "transactions" VALUES(5,'ttok_3b860585943356ca06fe929c94e70b5d','largest','charge','tok_visa',9223372036854775807,'EUR','executed',1795941223925,1795942123925,1795941223928,'txn_cb398163a07d644a05a5be862b26e8c7',2,NULL);
INSERT INTO "transactions" VALUES(6,'ttok_6dc55e9682a7342bc58e2544007f30ee','open','charge','tok_visa',1250,'EUR','created',1795941223931,4102444800000,NULL,NULL,NULL,NULL);
CREATE UNIQUE INDEX one_lives ON transactions (reference) WHERE state <> 'expired';
CREATE INDEX by_reference ON transactions (reference);
COMMIT;
PRAGMA user_version = 1;
