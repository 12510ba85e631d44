// The API: GET /healthz, GET and POST /api/jobs, GET /api/workspace. Everything is JSON.

import { BadRequest, QUEUE, addJob, listJobs, titleOf } from './jobs.js';

const MAX_BODY = 64 * 1024;

async function bodyOf(request) {
  let size = 0;
  const parts = [];
  for await (const part of request) {
    size += part.length;
    if (size > MAX_BODY) throw new BadRequest('the body is larger than 64 KiB');
    parts.push(part);
  }
  return Buffer.concat(parts).toString('utf8');
}

/** A request handler over a database and a queue. */
export function routes(database, queue, workspace) {
  const handlers = {
    'GET /healthz': async () => {
      await Promise.all([database.query('SELECT 1'), queue.ping()]);
      return [200, { status: 'ok' }];
    },
    'GET /api/workspace': async () => [200, workspace],
    'GET /api/jobs': async () => [200, { ...workspace, jobs: await listJobs(database) }],
    'POST /api/jobs': async (request) => {
      const job = await addJob(database, titleOf(await bodyOf(request)));
      // The job is kept by now. A knock that fails costs nothing: the mailer, cut off as well, looks at the table.
      await queue.lPush(QUEUE, String(job.id)).catch((error) => console.error(`queue: ${error.message}`));
      return [201, job];
    },
  };

  return async (request, response) => {
    const path = new URL(request.url, 'http://localhost').pathname;
    const handler = handlers[`${request.method} ${path}`];
    let status = 404;
    let body = { error: `there is no ${request.method} ${path}` };
    if (handler) {
      try {
        [status, body] = await handler(request);
      } catch (error) {
        const theirs = error instanceof BadRequest;
        if (!theirs) console.error(`${request.method} ${path}: ${error.message}`);
        status = theirs ? 400 : 503;
        body = { error: theirs ? error.message : 'database or queue did not answer: see the logs of this service' };
      }
    }
    response.writeHead(status, { 'content-type': 'application/json' });
    response.end(`${JSON.stringify(body)}\n`);
  };
}
