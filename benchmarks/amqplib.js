// The clients on Node: amqplib's ConfirmChannel, and amqp-connection-manager around it.
// node amqplib.js NAME LOAD - the same load and the same line of JSON as benchmarks/load.py.
"use strict";

const WITNESSES = 16;
const [name, argument] = process.argv.slice(2);
const load = JSON.parse(argument);
const body = Buffer.alloc(load.size);
let messages = 0;
// Equal work: mandatory, and a message_id of 32 characters that no other message has.
const options = load.equal
  ? () => ({ persistent: true, mandatory: true, messageId: (messages += 1).toString(16).padStart(32, "0") })
  : () => ({ persistent: true });
const unexpectedReturn = () => {
  throw new Error("the broker returned a message");
};
const meter = { confirmed: 0, nextMark: load.warm_up, began: null, took: null, latencies: [] };

const instant = () => {
  const { user, system } = process.cpuUsage();
  return [performance.now() / 1e3, (user + system) / 1e6];
};

function confirm() {
  meter.confirmed += 1;
  if (meter.confirmed < meter.nextMark || meter.took) return;
  const now = instant();
  if (!meter.began) {
    meter.began = now;
    meter.nextMark = meter.confirmed + load.count;
    meter.latencies = [];
  } else {
    meter.took = [now[0] - meter.began[0], now[1] - meter.began[1]];
  }
}

async function publisher(publish, witness) {
  while (!meter.took) {
    const began = witness ? performance.now() : 0;
    await publish();
    if (witness) meter.latencies.push((performance.now() - began) / 1e3);
    confirm();
  }
}

const all = (publish) =>
  Promise.all(Array.from({ length: load.in_flight }, (_, number) => publisher(publish, number < WITNESSES)));

const clients = {
  amqplib: async () => {
    const connection = await require("amqplib").connect(load.url);
    const channel = await connection.createConfirmChannel();
    channel.on("return", unexpectedReturn);
    await all(
      () =>
        new Promise((resolve, reject) =>
          channel.sendToQueue(load.queue, body, options(), (error) => (error ? reject(error) : resolve())),
        ),
    );
    await connection.close();
  },
  "amqp-connection-manager": async () => {
    const connection = require("amqp-connection-manager").connect([load.url]);
    const channel = connection.createChannel({ setup: (channel) => channel.on("return", unexpectedReturn) });
    await channel.waitForConnect();
    await all(() => channel.sendToQueue(load.queue, body, options()));
    await connection.close();
  },
};

clients[name]().then(() => {
  const [seconds, cpu_seconds] = meter.took;
  // Every n-th of the sorted ones: the same shares, and a report that fits into a pipe at once.
  const every = Math.ceil(meter.latencies.length / 2000);
  const latencies = meter.latencies.sort((a, b) => a - b).filter((_, place) => place % every === 0);
  const resident_kib = process.resourceUsage().maxRSS;
  const report = JSON.stringify({ confirmed: load.count, seconds, cpu_seconds, latencies, resident_kib });
  // Not console.log, for which process.exit would not wait.
  require("fs").writeSync(1, report + "\n");
  process.exit(0);
});
