/**
 * A longer way to a server on this machine: `node slow-link.ts PORT MILLISECONDS` prints the port that it
 * listens on. What clients send arrives so much later, what the server sends at once, so every request
 * takes that much longer. It looks at nothing, so that it costs little beside what is measured.
 */
import { type AddressInfo, createServer, connect as dial } from "node:net";

const [port, milliseconds] = process.argv.slice(2).map(Number) as [number, number];

const server = createServer((client) => {
  const upstream = dial(port, "127.0.0.1");
  for (const socket of [client, upstream]) socket.setNoDelay(true);
  upstream.pipe(client);
  if (milliseconds === 0) client.pipe(upstream);
  else {
    client.on("data", (chunk) => setTimeout(() => upstream.write(chunk), milliseconds));
    client.on("end", () => setTimeout(() => upstream.end(), milliseconds));
  }
  client.on("error", () => upstream.destroy());
  upstream.on("error", () => client.destroy());
  client.on("close", () => upstream.destroy());
});
server.listen(0, "127.0.0.1", () => console.log((server.address() as AddressInfo).port));
