// An HBONE client on Node's own HTTP/2: standard input goes into one CONNECT stream, what comes out
// of it goes to standard output.
//
// usage: client.mjs ROOT CERTIFICATE KEY HOST PORT AUTHORITY EXPECTED-IDENTITY
//
// Says on standard error: `server IDENTITIES`, then `status CODE`, then `end` when both sides have
// ended. Exits with 1 when the server is not whom it expects, 2 when the tunnel fails.
import { connect } from 'node:http2';
import { readFileSync } from 'node:fs';

const [root, certificate, key, host, port, authority, expected] = process.argv.slice(2);
const say = (...words) => process.stderr.write(`${words.join(' ')}\n`);
const fail = (code) => (error) => {
  say('error', error.code ?? '', error.message);
  process.exit(code);
};

const session = connect(`https://${host}:${port}`, {
  ca: readFileSync(root),
  cert: readFileSync(certificate),
  key: readFileSync(key),
  ALPNProtocols: ['h2'],
  minVersion: 'TLSv1.3',
  checkServerIdentity: (_, { subjectaltname }) => {
    say('server', subjectaltname);
    return subjectaltname === `URI:${expected}` ? undefined : new Error(`not ${expected}`);
  },
});
session.on('error', fail(1));
session.on('connect', () => {
  const stream = session.request({ ':method': 'CONNECT', ':authority': authority }, { endStream: false });
  stream.on('error', fail(2));
  stream.on('response', (headers) => {
    say('status', headers[':status']);
    if (headers[':status'] !== 200) {
      session.close();
      return;
    }
    process.stdin.pipe(stream);
    stream.pipe(process.stdout);
  });
  stream.on('close', () => {
    say('end');
    session.close();
  });
});
