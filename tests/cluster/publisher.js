// The same as publisher.py, with amqp-connection-manager: node publisher.js FOLDER URL [URL ...]

const fs = require("fs");
const path = require("path");
const { randomUUID } = require("crypto");
const manager = require("amqp-connection-manager");

const [folder, ...urls] = process.argv.slice(2);
const TASKS = 6, PAUSE = 100, PATIENCE = 60000, HEARTBEAT = 4;
const BODY = Buffer.alloc(300);

let queues = [];
let stopped = false;
require("readline")
  .createInterface({ input: process.stdin })
  .on("line", (line) => { queues = line.split(" ").slice(1); });
process.on("SIGTERM", () => { stopped = true; });

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const note = (queue, id, verdict) => {
  const instant = Number(process.hrtime.bigint()) / 1e9;
  fs.appendFileSync(path.join(folder, `${queue}.outcomes`), `${id}\t${verdict}\t${instant.toFixed(4)}\n`);
};

const main = async () => {
  const connection = manager.connect(urls, { heartbeatIntervalInSeconds: HEARTBEAT });
  const channel = connection.createChannel({ confirm: true });
  while (queues.length < 3) await sleep(10);
  const publish = async (place) => {
    while (!stopped) {
      const queue = queues[place], id = randomUUID();
      try {
        await channel.sendToQueue(queue, BODY, { persistent: true, messageId: id, timeout: PATIENCE });
        note(queue, id, "confirmed");
      } catch (error) {
        note(queue, id, "failed");
      }
      await sleep(PAUSE);
    }
  };
  const tasks = [];
  for (let place = 0; place < 3; place++) for (let task = 0; task < TASKS; task++) tasks.push(publish(place));
  await Promise.all(tasks);
  await Promise.race([connection.close(), sleep(10000)]);
  fs.writeSync(1, "{}\n");
  process.exit(0);
};

main();
