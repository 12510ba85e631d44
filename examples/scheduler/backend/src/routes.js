// The API: GET /healthz, GET and POST /api/jobs, GET and POST /api/pictures, GET /api/workspace. Everything is JSON.

import { endingOf } from './pictures.js';
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

/** A request handler over a database, a queue, and pictures where there is a storage for them. */
export function routes(database, queue, workspace, pictures) {
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
    'GET /api/pictures': async () => [200, { storage: Boolean(pictures), pictures: (await pictures?.list()) ?? [] }],
    'POST /api/pictures': async (request) => {
      if (!pictures) throw new BadRequest('this workspace has no storage: its project file says `storage: disabled`');
      return [201, await pictures.add(endingOf(await bodyOf(request)))];
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
        body = { error: theirs ? error.message : 'a data service did not answer: see the logs of this service' };
      }
    }
    response.writeHead(status, { 'content-type': 'application/json' });
    response.end(`${JSON.stringify(body)}\n`);
  };
}
