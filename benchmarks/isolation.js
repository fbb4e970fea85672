// The isolation benchmark on Node: amqplib's ConfirmChannel on one connection; see benchmarks/isolation_clients.py.
// node isolation.js LOAD, with the fields of BAD as "bad": {exchange, key, user_id}, and "schedule": [[due, good], ...].
"use strict";

const load = JSON.parse(process.argv[2]);
const report = { latencies: [], failed: 0, reopened: 0 };
const body = Buffer.alloc(256);
let channel = null;

async function main() {
  const connection = await require("amqplib").connect(load.url);
  connection.on("error", () => {});
  const open = async () => {
    const fresh = await connection.createConfirmChannel();
    fresh.on("error", () => {});
    fresh.on("close", () => {
      report.reopened += 1;
      channel = open();
    });
    return fresh;
  };
  channel = open();
  await channel;
  const began = performance.now() / 1e3;
  const publish = async (good) => {
    const current = await channel;
    const options = { persistent: true, mandatory: true };
    if (!good && load.bad.user_id) options.userId = load.bad.user_id;
    await new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("no confirm")), 30000);
      const done = (error) => (clearTimeout(timer), error ? reject(error) : resolve());
      current.once("close", () => done(new Error("closed")));
      if (good) current.publish("", load.good_queue, body, options, done);
      else current.publish(load.bad.exchange, load.bad.key, body, options, done);
    });
  };
  const all = [];
  for (const [due, good] of load.schedule) {
    const wait = began + due - performance.now() / 1e3;
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait * 1e3));
    all.push(
      publish(good).then(
        () => good && report.latencies.push(performance.now() / 1e3 - began - due),
        () => (report.failed += good ? 1 : 0),
      ),
    );
  }
  await Promise.all(all);
  require("fs").writeSync(1, JSON.stringify(report) + "\n");
  process.exit(0);
}

main();
