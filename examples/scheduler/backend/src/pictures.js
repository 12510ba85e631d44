// Pictures: kept in the workspace's object storage. The browser sends and reads them itself, by addresses that are
// signed here and hold for minutes; not an octet of them passes through this service.

import { randomUUID } from 'node:crypto';
import { BadRequest } from './jobs.js';

const TYPES = { 'image/png': 'png', 'image/jpeg': 'jpg', 'image/gif': 'gif', 'image/webp': 'webp' };
const SECONDS = 900;

/** The file ending of a picture that may be sent, from a request's body. */
export function endingOf(text) {
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw new BadRequest('the body is no JSON: send {"type": "image/png"}');
  }
  const ending = Object.hasOwn(TYPES, body?.type) ? TYPES[body.type] : undefined;
  if (!ending) throw new BadRequest(`\`type\` is none of ${Object.keys(TYPES).join(', ')}`);
  return ending;
}

/** Keys in a listing, newest first. Keys of ours hold nothing that XML would escape. */
export function keysOf(listing) {
  return [...listing.matchAll(/<Key>(pictures\/[\w.-]+)<\/Key>/g)].map((match) => match[1]).sort().reverse();
}

/** The pictures of a workspace, or undefined where it has no storage. `cache` keeps signed addresses while they hold. */
export async function openPictures(environment, cache) {
  const { STORAGE_URL, STORAGE_ENDPOINT, STORAGE_BUCKET } = environment;
  if (!STORAGE_URL) return undefined;
  const { AwsClient } = await import('aws4fetch');
  const client = new AwsClient({
    accessKeyId: environment.STORAGE_ACCESS_KEY,
    secretAccessKey: environment.STORAGE_SECRET_KEY,
    region: environment.STORAGE_REGION,
    service: 's3',
  });
  // What a browser is to open is signed for the address that a browser can open.
  const signed = async (method, key) => {
    const address = `${STORAGE_URL}/${STORAGE_BUCKET}/${key}?X-Amz-Expires=${SECONDS}`;
    return (await client.sign(address, { method, aws: { signQuery: true } })).url;
  };
  const shown = async (key) => {
    const known = await cache?.get(`shown:${key}`);
    if (known) return known;
    const url = await signed('GET', key);
    await cache?.set(`shown:${key}`, url, { EX: SECONDS - 60 });
    return url;
  };
  return {
    async list() {
      const answer = await client.fetch(`${STORAGE_ENDPOINT}/${STORAGE_BUCKET}?list-type=2&prefix=pictures/`);
      if (!answer.ok) throw new Error(`storage answered ${answer.status}`);
      const keys = keysOf(await answer.text()).slice(0, 50);
      return Promise.all(keys.map(async (key) => ({ key, url: await shown(key) })));
    },
    async add(ending) {
      const key = `pictures/${Date.now()}-${randomUUID()}.${ending}`;
      return { key, upload: await signed('PUT', key) };
    },
  };
}
