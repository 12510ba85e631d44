// What a person with a browser meets behind signed links: a sleeping workspace, hot reload, forms, logins, other pages.
//
//   ENVFORGE=… ENVFORGE_HOME=… node run.mjs WORKSPACE SHOTS [SCENARIO…]
//
// Drives Debian's Chromium. Prints a line for each thing that holds; the first that does not ends it with a picture.
import { execFileSync } from 'node:child_process';
import { chromium } from 'playwright-core';

const [workspace, shots, ...wanted] = process.argv.slice(2);
const PATIENCE = 90_000;

const envforge = (...args) =>
  execFileSync(process.env.ENVFORGE, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
const share = (service, ...more) => JSON.parse(envforge('--json', 'share', workspace, '--service', service, ...more));
const inside = (script) => envforge('exec', workspace, '--', 'sh', '-c', script);
const edit = (file, from, to) => inside(`sed -i s/${from}/${to}/ /workspace/${file}`);

let page;
const holds = (what, sound, seen) => {
  if (!sound) throw new Error(`${what}: saw ${JSON.stringify(seen)}`);
  console.log(`  holds: ${what}`);
};
const shot = (name) => page.screenshot({ path: `${shots}/${name}.png` });
const says = (selector, text) =>
  page.waitForFunction(([at, wanted]) => document.querySelector(at)?.textContent === wanted, [selector, text]);

/** Edits a file under an open page, which must show it without being loaded again. */
async function reloadsHot(what, file) {
  await says('#word', 'first');
  await page.evaluate(() => { window.mark = 'kept'; });
  // The socket is open before the edit, or it would be missed.
  await page.waitForFunction(() => window.mark === 'kept');
  edit(file, 'first', 'second');
  await says('#word', 'second');
  holds(`${what} shows an edit without loading the page again`, await page.evaluate(() => window.mark === 'kept'), 'a new page');
}

const scenarios = {
  async vite({ context }) {
    const { url } = share('vite');
    envforge('sleep', workspace, '--wait');
    const sockets = [];
    page.on('websocket', (socket) => sockets.push(socket));
    const first = await page.goto(url);
    holds('a sleeping workspace shows its waiting page', first.status() === 503, first.status());
    holds('which names it', (await page.title()) === `${workspace} is waking`, await page.title());
    await page.waitForFunction(() => document.querySelectorAll('#l li').length >= 1);
    await shot('waiting');
    await page.waitForFunction(() => document.title === 'Vite app');
    holds('and turns into the application by itself', page.url().includes('vite--'), page.url());
    await reloadsHot('Vite', 'vite/src/word.js');
    await shot('vite');
    const cookies = await context.cookies();
    const visit = cookies.find((cookie) => cookie.name === 'envforge');
    holds('the cookie is for this host alone and no script', visit?.httpOnly && !visit.domain.startsWith('.'), visit);
    holds('no script sees it', !(await page.evaluate(() => document.cookie)).includes('envforge'));
    holds('hot reload has its socket', sockets.some((socket) => !socket.isClosed()), sockets.length);
  },

  async noscript({ browser }) {
    const { url } = share('vite');
    envforge('sleep', workspace, '--wait');
    const context = await browser.newContext({ javaScriptEnabled: false });
    page = await context.newPage();
    page.setDefaultTimeout(PATIENCE);
    await page.goto(url);
    holds('without a script there is the waiting page too', (await page.title()).endsWith('is waking'));
    const deadline = Date.now() + PATIENCE;
    while ((await page.title()) !== 'Vite app' && Date.now() < deadline) {
      await page.waitForEvent('load').catch(() => {});
    }
    holds('which is loaded again until it is there', (await page.title()) === 'Vite app', await page.title());
    await context.close();
  },

  async next() {
    const socket = page.waitForEvent('websocket');
    await page.goto(share('next').url);
    await page.waitForFunction(() => document.title === 'Next app');
    // Its first message is the server's greeting: from then on it hears of edits.
    await (await socket).waitForEvent('framereceived').catch(() => {});
    await reloadsHot('Next', 'next/app/page.jsx');
    await shot('next');
  },

  async django() {
    await page.goto(share('django').url);
    await page.waitForFunction(() => document.title === 'Django app');
    await page.fill('input[name=said]', 'hello');
    await page.click('button');
    await says('#said', 'hello');
    holds('a form that Django protects is taken', true);
    await shot('django');
  },

  async express({ context }) {
    await page.goto(share('express').url);
    await page.waitForFunction(() => document.title === 'Log in');
    holds('a redirect stays on the dev host', new URL(page.url()).hostname.startsWith('express--'), page.url());
    await page.fill('input[name=who]', 'ada');
    await page.click('button');
    await says('#who', 'ada');
    holds('a login by redirect and cookie works', page.url().endsWith('/'), page.url());
    const who = (await context.cookies()).find((cookie) => cookie.name === 'who');
    holds("the application's cookie is its dev host's alone", who && !who.domain.startsWith('.'), who);
    const headers = await page.evaluate(async () => (await fetch('/headers')).json());
    holds('the application sees its own cookie and not the visit', headers.cookie === 'who=ada', headers.cookie);
    holds('and who was verified', /^link:lnk_/.test(headers['x-envforge-user']), headers['x-envforge-user']);
    await shot('express');
  },

  async pages({ context }) {
    const victim = await context.newPage();
    victim.setDefaultTimeout(PATIENCE);
    await victim.goto(share('express').url);
    await victim.waitForFunction(() => document.title.length > 0);
    const origin = new URL(victim.url()).origin;
    await page.goto(share('django').url);
    await page.waitForFunction(() => document.title === 'Django app');
    const base = new URL(origin).hostname.split('.').slice(1).join('.');
    await page.evaluate(async ([origin, base]) => {
      const tries = [
        fetch(`${origin}/act`, { credentials: 'include', mode: 'no-cors' }),
        fetch(`${origin}/act`, { method: 'POST', credentials: 'include', mode: 'no-cors' }),
        new Promise((done) => {
          const image = new Image();
          image.onload = image.onerror = done;
          image.src = `${origin}/act`;
        }),
        new Promise((done) => {
          const frame = document.createElement('iframe');
          frame.name = 'frame';
          document.body.append(frame);
          const form = document.createElement('form');
          Object.assign(form, { method: 'post', action: `${origin}/act`, target: 'frame' });
          document.body.append(form);
          form.submit();
          frame.onload = done;
        }),
        new Promise((done) => {
          const socket = new WebSocket(`${origin.replace('http', 'ws')}/act`);
          socket.onopen = socket.onerror = socket.onclose = done;
        }),
      ];
      await Promise.allSettled(tries);
      for (const domain of [base, `.${base}`]) document.cookie = `envforge=shadow; Path=/; Domain=${domain}`;
    }, [origin, base]);
    const { done } = await victim.evaluate(async () => (await fetch('/done')).json());
    holds('a page of one dev host does nothing on another', done === 0, done);
    const own = await victim.evaluate(async () => {
      await fetch('/act', { method: 'POST' });
      return (await fetch('/done')).json();
    });
    holds('what its own page does counts', own.done === 1, own.done);
    await victim.reload();
    holds('nor takes its visit away', (await victim.title()) !== '' && !(await victim.content()).includes('valid link'));
    await victim.close();
  },

  async revoke() {
    const { id, url } = share('vite');
    const opened = page.waitForEvent('websocket');
    await page.goto(url);
    await page.waitForFunction(() => document.title === 'Vite app');
    const socket = await opened;
    const closed = socket.isClosed() ? Promise.resolve() : socket.waitForEvent('close', { timeout: 10_000 });
    envforge('revoke', id);
    await closed;
    holds('a revoked link closes what is open of it', socket.isClosed());
    const again = await page.goto(new URL('/', page.url()).href);
    holds('and opens nothing any more', again.status() === 404, again.status());
    await shot('revoked');
  },
};

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--host-resolver-rules=MAP *.dev.test 127.0.0.1, MAP dev.test 127.0.0.1'],
});
let failed = false;
for (const name of wanted.length ? wanted : Object.keys(scenarios)) {
  const begun = Date.now();
  const context = await browser.newContext();
  page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  console.log(name);
  try {
    await scenarios[name]({ browser, context });
    console.log(`  ${((Date.now() - begun) / 1000).toFixed(1)} s`);
  } catch (error) {
    failed = true;
    await shot(`failed-${name}`).catch(() => {});
    console.log(`  FAILED: ${error.message}\n  ${shots}/failed-${name}.png, ${page.url().replace(/\/share\/.*/, '/share/…')}`);
  }
  await context.close();
}
await browser.close();
process.exit(failed ? 1 : 0);
