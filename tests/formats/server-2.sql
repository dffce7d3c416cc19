PRAGMA user_version = 2;
PRAGMA application_id = 1431126604;
BEGIN TRANSACTION;
CREATE TABLE answers (
	run TEXT NOT NULL, 
	id TEXT NOT NULL, 
	ask INTEGER, 
	message BLOB, 
	PRIMARY KEY (run, id)
);
CREATE TABLE asks (
	run TEXT NOT NULL, 
	ask INTEGER NOT NULL, 
	spec BLOB, 
	PRIMARY KEY (run, ask)
);
CREATE TABLE audit (
	number INTEGER NOT NULL, 
	at REAL, 
	who TEXT, 
	did TEXT, 
	what TEXT, 
	PRIMARY KEY (number)
);
CREATE TABLE events (
	run TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	at REAL, 
	body TEXT, 
	PRIMARY KEY (run, number)
);
INSERT INTO "events" VALUES('r',1,1.0,'{}');
CREATE TABLE nodes (
	id TEXT NOT NULL, 
	name TEXT, 
	"key" BLOB, 
	status TEXT, 
	clients TEXT, 
	joined_at REAL, 
	seen_at REAL, 
	capabilities TEXT, 
	relay INTEGER, 
	PRIMARY KEY (id)
);
INSERT INTO "nodes" VALUES('a','ward',X'6B','approved','["1"]',NULL,NULL,'{}',0);
CREATE TABLE runs (
	id TEXT NOT NULL, 
	status TEXT, 
	owner TEXT, 
	name TEXT, 
	created_at REAL, 
	ended_at REAL, 
	spec BLOB, 
	submission TEXT, 
	exit TEXT, 
	members TEXT, 
	closed INTEGER, 
	PRIMARY KEY (id)
);
INSERT INTO "runs" VALUES('r','finished','ann','demo',NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE tasks (
	run TEXT NOT NULL, 
	task TEXT NOT NULL, 
	ask INTEGER, 
	client TEXT, 
	node TEXT, 
	attempt INTEGER, 
	message BLOB, 
	answer TEXT, 
	PRIMARY KEY (run, task)
);
CREATE TABLE tokens (
	id TEXT NOT NULL, 
	kind TEXT, 
	digest BLOB, 
	role TEXT, 
	name TEXT, 
	run TEXT, 
	expires_at REAL, 
	used_at REAL, 
	PRIMARY KEY (id)
);
CREATE INDEX tasks_by_run_ask ON tasks (run, ask);
CREATE INDEX answers_by_run_ask ON answers (run, ask);
COMMIT;
