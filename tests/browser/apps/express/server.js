// A login by cookie and redirect; counts what is done to it, and tells what it was sent.
const express = require('express');

const app = express();
let done = 0;
app.use(express.urlencoded({ extended: false }));
app.get('/health', (_, response) => response.send('ok'));
app.get('/', (request, response) => {
  const who = /(?:^|; )who=(\w+)/.exec(request.headers.cookie ?? '')?.[1];
  if (!who) return response.redirect('/login');
  response.send(`<!doctype html><title>Express app</title><h1 id="who">${who}</h1>`);
});
app.get('/login', (_, response) => {
  response.send('<!doctype html><title>Log in</title><form method="post"><input name="who"><button>Go</button></form>');
});
app.post('/login', (request, response) => {
  response.set('set-cookie', `who=${request.body.who.replace(/\W/g, '')}; Path=/; HttpOnly; Domain=localhost`);
  response.redirect(303, `http://${request.headers.host}/`);
});
app.all('/act', (_, response) => { done += 1; response.send('done'); });
app.get('/done', (_, response) => response.json({ done }));
app.get('/headers', (request, response) => response.json(request.headers));
app.listen(Number(process.env.PORT), '127.0.0.1');
