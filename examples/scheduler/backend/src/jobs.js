// Jobs: the rules, and the SQL that keeps them. The row is the truth; the queue is only the knock on the mailer's
// door, so that a lost knock costs no job.

/** Name of the Redis list that the API pushes to and the mailer pops from. */
export const QUEUE = 'jobs:waiting';

/** A request that the caller can mend. */
export class BadRequest extends Error {}

/** The title in a request's body, checked. */
export function titleOf(text) {
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw new BadRequest('the body is no JSON: send {"title": "…"}');
  }
  const title = typeof body?.title === 'string' ? body.title.trim() : '';
  if (title === '') throw new BadRequest('`title` is missing or empty: send {"title": "…"}');
  if (title.length > 200) throw new BadRequest('`title` is longer than 200 characters: shorten it');
  return title;
}

const COLUMNS = "id, title, CASE WHEN sent_at IS NULL THEN 'waiting' ELSE 'sent' END AS state, created_at, sent_at";

/** The newest hundred jobs. */
export async function listJobs(database) {
  const { rows } = await database.query(`SELECT ${COLUMNS} FROM jobs ORDER BY id DESC LIMIT 100`);
  return rows;
}

/** A new job. */
export async function addJob(database, title) {
  const { rows } = await database.query(`INSERT INTO jobs (title) VALUES ($1) RETURNING ${COLUMNS}`, [title]);
  return rows[0];
}

/** Ids of the jobs that nobody has sent, oldest first. */
export async function waitingJobs(database) {
  const { rows } = await database.query('SELECT id FROM jobs WHERE sent_at IS NULL ORDER BY id');
  return rows.map((row) => row.id);
}

/** Marks a job as sent. Its title, or undefined when it was sent before. */
export async function markSent(database, id) {
  const { rows } = await database.query(
    'UPDATE jobs SET sent_at = now() WHERE id = $1 AND sent_at IS NULL RETURNING title',
    [id],
  );
  return rows[0]?.title;
}
