// The API server. SIGTERM: takes no new request, answers those it has, closes its connections, ends.

import { createServer } from 'node:http';
import { openCache, openDatabase, openQueue } from './src/connections.js';
import { openPictures } from './src/pictures.js';
import { routes } from './src/routes.js';

const database = openDatabase();
const queue = await openQueue({ patient: false });
const workspace = { workspace: process.env.WORKSPACE, branch: process.env.BRANCH, site: process.env.SITE_URL };
const cache = await openCache();
const pictures = await openPictures(process.env, cache);
const server = createServer(routes(database, queue, workspace, pictures));
const port = Number(process.env.PORT ?? 4100);

server.listen(port, '127.0.0.1', () => console.log(`listening on port ${port}`));

process.once('SIGTERM', () => {
  server.close(async () => {
    await Promise.allSettled([database.end(), queue.close(), cache?.close()]);
    console.log('stopped');
  });
  server.closeIdleConnections();
});
