// The isolation benchmark on Node: amqplib's ConfirmChannel on one connection; see benchmarks/isolation_clients.py.
// node isolation.js LOAD, with the fields of Bad as "bad", and "schedule": [[due, good, number], ...].
"use strict";

const load = JSON.parse(process.argv[2]);
const report = { alone: [], beside: [], failed: 0, reopened: 0, bad: {} };
const body = Buffer.alloc(256);
const badBody = Buffer.alloc(load.bad.size);
let channel = null;

function tell() {
  require("fs").writeSync(1, JSON.stringify(report) + "\n");
  process.exit(0);
}

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
  const publish = async (good, number) => {
    const current = await channel;
    const options = { persistent: true, mandatory: true };
    if (!good && load.bad.user_id) options.userId = load.bad.user_id;
    if (!good && load.bad.headers) options.headers = load.bad.headers;
    const exchange = load.bad.numbered ? `${load.bad.exchange}.${number}` : load.bad.exchange;
    await new Promise((resolve, reject) => {
      const done = (error) => (error ? reject(error) : resolve());
      current.once("close", () => done(new Error("closed")));
      if (good) current.publish("", load.good_queue, body, options, done);
      else current.publish(exchange, load.bad.key, badBody, options, done);
    });
  };
  for (let number = 0; number < 20; number++) await publish(true, 0);
  const began = performance.now() / 1e3;
  const goods = [];
  for (const [due, good, number] of load.schedule) {
    const wait = began + due - performance.now() / 1e3;
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait * 1e3));
    const one = publish(good, number).then(
      () => {
        if (good) (due < load.alone ? report.alone : report.beside).push(performance.now() / 1e3 - began - due);
        else report.bad.confirmed = (report.bad.confirmed || 0) + 1;
      },
      () => {
        if (good) report.failed += 1;
        else report.bad.Error = (report.bad.Error || 0) + 1;
      },
    );
    if (good) goods.push(one);
  }
  setTimeout(() => {
    report.failed = goods.length - report.alone.length - report.beside.length;
    tell();
  }, load.patience * 1e3);
  await Promise.all(goods);
  tell();
}

main();
