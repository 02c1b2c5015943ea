import { assertEquals, assertThrows } from "@std/assert";
import { createAlertSender } from "./alert_sender.ts";

const settings = { enable_feishu_alert: true, feishu_alert_address: null, alert_file_path: null };

Deno.test("createAlertSender() sends each alert once, and every message, to the chat", async () => {
  const folder = Deno.makeTempDirSync(), received: string[] = [], errors: string[] = [];
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
    const { content: { post: { zh_cn } } } = await request.json();
    received.push(`${zh_cn.title}: ${zh_cn.content[0][0].text}`);
    return new Response("{}");
  });
  try {
    const alert_file_path = `${folder}/alerts/run.log`;
    const sender = createAlertSender(
      { ...settings, feishu_alert_address: `http://127.0.0.1:${server.addr.port}/hook`, alert_file_path },
      { title: "7_demo", onError: (sentence) => errors.push(sentence) },
    );
    sender.message("begins");
    for (const text of ["loss at step 12", "loss at step 1", "loss at step 12"]) sender.alert(text);
    sender.message("begins");
    await sender.settled();
    const begins = "7_demo: begins";
    assertEquals(received, [begins, "7_demo: loss at step 12", "7_demo: loss at step 1", begins]);
    assertEquals(Deno.readTextFileSync(alert_file_path), "loss at step 12\nloss at step 1\n");
    assertEquals(errors, []);
  } finally {
    await server.shutdown();
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("createAlertSender() sends nothing unless it is told to and knows where", async () => {
  const errors: string[] = [], options = { title: "t", onError: (sentence: string) => void errors.push(sentence) };
  // An address that is not allowed: reaching for it would throw.
  const silent = [settings, { ...settings, enable_feishu_alert: false, feishu_alert_address: "http://192.0.2.1/" }];
  for (const given of silent) {
    const sender = createAlertSender(given, options);
    sender.alert("nobody hears");
    await sender.settled();
  }
  assertEquals(errors, []);
});

Deno.test({
  name: "createAlertSender() names the variable that opens the network to the address",
  permissions: { net: ["127.0.0.1"] },
  fn() {
    const create = (feishu_alert_address: string) =>
      createAlertSender({ ...settings, feishu_alert_address }, { title: "t", onError: console.error });
    const refusal = Deno.errors.NotCapable;
    assertThrows(() => create("https://chat.example/hook"), refusal, "TROUPE_NET=,chat.example in the environment");
    assertThrows(() => create("http://chat.example:81/"), refusal, "TROUPE_NET=,chat.example:81 in");
    create("http://127.0.0.1:9/hook");
  },
});
