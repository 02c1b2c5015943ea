/** Fields of the run record whose effect shows only in the whole program: where its files go, and who is told. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { assertNoStackTrace, inFolder, runFolders, tinyRecord } from "./processes.ts";

Deno.test("train() tells the chat of start, alerts and end, and writes logs, event files and snapshots where the record says", () =>
  inFolder(async (folder, processes) => {
    const received: { title: string; text: string }[] = [];
    const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
      const { content: { post: { zh_cn } } } = await request.json();
      received.push({ title: zh_cn.title, text: zh_cn.content[0][0].text });
      return new Response("{}");
    });
    try {
      const config = tinyRecord(folder, {
        JOB_NAME: "told",
        // Steps this long make the loss jump.
        adam: { lr: 3 },
        lr_scheduler: { eta_min: 3 },
        ckpt: { oss_snapshot_freq: 2, snapshot_ckpt_folder: `${folder}/snapshots`, stop_file_path: `${folder}/stop` },
        monitor: {
          alert: {
            enable_feishu_alert: true,
            feishu_alert_address: `http://127.0.0.1:${server.addr.port}/hook`,
            alert_file_path: `${folder}/alerts/told.log`,
          },
        },
      });
      await Deno.writeTextFile(
        config,
        JSON.stringify({ ...JSON.parse(await Deno.readTextFile(config)), tensorboard_folder: `${folder}/board` }),
      );
      const ended = await processes.run(["train", "--config", config, "--backend", "cpu"], { folder });
      assertEquals(ended.code, 0, ended.err);
      assertNoStackTrace(ended);

      const host = Deno.hostname(), texts = received.map(({ text }) => text);
      assert(received.every(({ title }) => title.endsWith("_told")), JSON.stringify(received));
      assertEquals(texts[0], `Training on ${host} begins`);
      assertMatch(texts.at(-1)!, new RegExp(`^Training on ${host} finished: Finished after step 6\\. Checkpoints: `));
      const alerts = texts.filter((text) => text.startsWith("Loss spike"));
      assert(alerts.length > 0, texts.join("\n"));
      assertEquals(alerts.join("\n") + "\n", await Deno.readTextFile(`${folder}/alerts/told.log`));

      const rank = "main_dp=0_tp=0_pp=0", [run] = runFolders(folder);
      const log = await Deno.readTextFile(`${run}/logs/${rank}`);
      for (const words of ["told: new run", "memory before batch 5", " step=5 ", alerts[0]!]) {
        assertStringIncludes(log, words);
      }
      const [events, ...more] = [...Deno.readDirSync(`${folder}/board/${rank}`)].map(({ name }) => name);
      assertEquals(more, []);
      const board = new TextDecoder("latin1").decode(await Deno.readFile(`${folder}/board/${rank}/${events}`));
      for (const words of ["job_name", "told", "cmd", `troupe train --config ${config}`, "config", "JOB_NAME: told"]) {
        assertStringIncludes(board, words);
      }
      assertEquals([...Deno.readDirSync(`${folder}/snapshots`)].map(({ name }) => name).sort(), ["2", "4"]);
      assertEquals(await Deno.readTextFile(`${folder}/stop`), "0\n");
    } finally {
      await server.shutdown();
    }
  }));

Deno.test("train() says how to open the network to an address for alerts that it may not reach, before it begins", () =>
  inFolder(async (folder, processes) => {
    const alert = { enable_feishu_alert: true, feishu_alert_address: "https://chat.example/hook" };
    const config = tinyRecord(folder, { monitor: { alert } });
    const ended = await processes.run(["train", "--config", config, "--backend", "cpu"], { folder });
    assertEquals(ended.code, 1);
    assertNoStackTrace(ended);
    assertMatch(ended.err, /chat\.example:443 .*TROUPE_NET=,chat\.example in the environment/);
  }));
