// An HBONE server on Node's own HTTP/2: dials what a CONNECT names and joins the two.
//
// usage: server.mjs ROOT CERTIFICATE KEY HOST PORT
//
// Says on standard output: `ready`, then `stream AUTHORITY IDENTITIES` for each request. Answers 503
// when it cannot dial.
import { createSecureServer } from 'node:http2';
import { connect } from 'node:net';
import { readFileSync } from 'node:fs';

const [root, certificate, key, host, port] = process.argv.slice(2);
const say = (...words) => process.stdout.write(`${words.join(' ')}\n`);

const server = createSecureServer({
  ca: readFileSync(root),
  cert: readFileSync(certificate),
  key: readFileSync(key),
  requestCert: true,
  rejectUnauthorized: true,
  ALPNProtocols: ['h2'],
  minVersion: 'TLSv1.3',
});
server.on('stream', (stream, headers) => {
  const authority = headers[':authority'];
  const client = stream.session.socket.getPeerCertificate().subjectaltname;
  say('stream', authority, client);
  if (headers[':method'] !== 'CONNECT') {
    stream.respond({ ':status': 400 }, { endStream: true });
    return;
  }
  const { hostname, port: target } = new URL(`tcp://${authority}`);
  const application = connect({
    host: hostname.replace(/^\[|\]$/g, ''),
    port: Number(target),
    allowHalfOpen: true,
  });
  application.on('connect', () => {
    stream.respond({ ':status': 200 });
    stream.pipe(application);
    application.pipe(stream);
  });
  application.on('error', () => {
    if (stream.headersSent) stream.close(2);
    else stream.respond({ ':status': 503 }, { endStream: true });
  });
  stream.on('error', () => application.destroy());
});
server.on('sessionError', (error) => say('error', error.message));
server.listen(Number(port), host, () => say('ready'));
