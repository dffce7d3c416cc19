PRAGMA user_version = 0;
PRAGMA application_id = 0;
BEGIN TRANSACTION;
CREATE TABLE answers (run TEXT, task TEXT, ask INTEGER, message BLOB, PRIMARY KEY (run, task));
INSERT INTO "answers" VALUES('r','1.0',1,X'616E73776572');
INSERT INTO "answers" VALUES('r','1.1',1,X'6661696C6564');
CREATE TABLE digests (run TEXT, task TEXT, digest BLOB, PRIMARY KEY (run, task)) WITHOUT ROWID;
INSERT INTO "digests" VALUES('r','1.0',X'646967657374');
CREATE TABLE ended (run TEXT PRIMARY KEY);
INSERT INTO "ended" VALUES('old');
CREATE TABLE states
    (run TEXT, task TEXT, client TEXT, ask INTEGER, settled INTEGER, data BLOB, PRIMARY KEY (run, task));
INSERT INTO "states" VALUES('r','1.0','0',1,NULL,X'7374617465');
CREATE INDEX answers_by_ask ON answers (run, ask);
CREATE INDEX states_by_ask ON states (run, ask);
CREATE INDEX states_by_client ON states (run, client);
COMMIT;
