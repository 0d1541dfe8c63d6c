"""Users, their sessions and what was said in them."""

from alembic import op

revision = "0001"
down_revision = None

VECTOR_IF_THERE_IS_ONE = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector') THEN
        CREATE EXTENSION IF NOT EXISTS vector;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'extension vector is available, but this user may not create it';
END $$
"""

TABLES = """
CREATE TABLE users (
    id text PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE users IS 'Whoever owns a session; made when first heard of.';

CREATE TABLE profiles (
    user_id text PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    data jsonb NOT NULL CHECK (jsonb_typeof(data) = 'object'),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE profiles IS 'What answers may use of a user.';
COMMENT ON COLUMN profiles.data IS 'An object of facts, shown to the model key by key.';

CREATE TABLE sessions (
    id text PRIMARY KEY,
    user_id text NOT NULL REFERENCES users ON DELETE CASCADE,
    title text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
COMMENT ON TABLE sessions IS 'Conversations. A session never changes its owner.';
COMMENT ON COLUMN sessions.updated_at IS 'When the newest of its messages was made.';

CREATE TABLE messages (
    id text PRIMARY KEY,
    session_id text NOT NULL REFERENCES sessions ON DELETE CASCADE,
    sid text NOT NULL,
    user_id text NOT NULL REFERENCES users ON DELETE CASCADE,
    role text NOT NULL CHECK (role IN ('user', 'assistant')),
    branch integer,
    section text,
    model text,
    status text,
    content text NOT NULL,
    reasoning text NOT NULL DEFAULT '',
    tool_calls jsonb,
    finish_reason text,
    usage jsonb,
    ttft_ms double precision,
    duration_ms double precision,
    created_at timestamptz NOT NULL,
    turn_at timestamptz NOT NULL,
    position integer NOT NULL,
    CHECK ((role = 'user') = (branch IS NULL))
);
COMMENT ON TABLE messages IS 'One row for a question, one for every branch that answered it.';
COMMENT ON COLUMN messages.id IS '<sid>.q for the question, <sid>.<branch> for an answer.';
COMMENT ON COLUMN messages.sid IS 'The stream of this turn.';
COMMENT ON COLUMN messages.branch IS 'Index of the branch from 0; null for the question.';
COMMENT ON COLUMN messages.section IS 'Label of the branch, when the request gave one.';
COMMENT ON COLUMN messages.status IS 'How the branch ended: done, incomplete, failed, cancelled.';
COMMENT ON COLUMN messages.tool_calls IS 'Whole calls in the OpenAI form; null for none.';
COMMENT ON COLUMN messages.usage IS 'Tokens, and who counted them.';
COMMENT ON COLUMN messages.ttft_ms IS 'Time to the first token.';
COMMENT ON COLUMN messages.turn_at IS
    'created_at of the question, on all rows of its turn: turns stay whole when they overlap.';
COMMENT ON COLUMN messages.position IS 'Within a turn: 0 for the question, 1 + branch after it.';

CREATE TABLE message_pieces (
    session_id text NOT NULL REFERENCES sessions ON DELETE CASCADE,
    message_id text NOT NULL,
    piece integer NOT NULL,
    pieces integer NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (session_id, message_id, pieces, piece)
);
COMMENT ON TABLE message_pieces IS
    'Parts of messages too long for one queue item, until the last part has come.';
COMMENT ON COLUMN message_pieces.payload IS 'The item as it came, in MessagePack.';
"""

INDEXES = """
CREATE INDEX messages_of_session ON messages (session_id, turn_at, sid, position);
COMMENT ON INDEX messages_of_session IS 'The last messages of a session, read backwards.';
CREATE INDEX messages_of_turn ON messages (sid);
CREATE INDEX messages_of_user ON messages (user_id);
COMMENT ON INDEX messages_of_user IS 'For deleting a user.';
CREATE INDEX sessions_of_user ON sessions (user_id, updated_at DESC, id);
COMMENT ON INDEX sessions_of_user IS 'A page of somebody''s sessions, newest first.';
"""


def upgrade() -> None:
    op.execute(VECTOR_IF_THERE_IS_ONE)
    op.execute(TABLES)
    op.execute(INDEXES)


def downgrade() -> None:
    op.execute("DROP TABLE message_pieces, messages, sessions, profiles, users")
