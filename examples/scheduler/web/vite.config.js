import { defineConfig } from 'vite';

// The port is given by the workspace. `strictPort`: a taken port is an error, never another port.
// `/api` is the backend's on this origin. Behind the gateway it never gets here; on localhost this proxy does the same.
const port = Number(process.env.PORT ?? 3000);
const api = process.env.API_URL;

export default defineConfig({
  server: {
    host: '127.0.0.1',
    port,
    strictPort: true,
    proxy: api ? { '/api': { target: api, ws: true } } : undefined,
  },
});
