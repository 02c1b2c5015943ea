import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { alertTitle, claimAlert, LossSpikeDetector, sendFeishuMessage, StuckDetector } from "./alerts.ts";

Deno.test("LossSpikeDetector tells losses above 1.5 times the one before, and losses that are no number", () => {
  const spikes = new LossSpikeDetector();
  const losses = [10, 15, 22.6, 5, NaN, 7.4, 12];
  const told = losses.map((loss, step) => spikes.check(step, loss));
  assertEquals(told.map((text) => text !== undefined), [false, false, true, false, true, false, false]);
  assertStringIncludes(told[2]!, "step 2: 22.6000, more than 1.5 times the 15.0000 of");
  spikes.check(102, 30);
  spikes.check(103, 10);
  const later = spikes.check(104, 20)!;
  assert(later.endsWith("step before (and 2 more since step 2)"), later);
});

Deno.test("StuckDetector tells once each time a run falls silent", () => {
  let now = 0;
  const stuck = new StuckDetector({ now: () => now, patienceSeconds: 300 });
  now = 1_000_000;
  assertEquals(stuck.check(), undefined, "nothing is expected before the first step");
  stuck.active(5);
  now += 299_999;
  assertEquals(stuck.check(), undefined);
  now += 1;
  assertStringIncludes(stuck.check()!, "no step for 300 s, the last was step 5");
  assertEquals(stuck.check(), undefined);
  stuck.active(6);
  now += 400_000;
  assertStringIncludes(stuck.check()!, "step 6");
});

Deno.test("alertTitle() takes the job's id from where the run was started", () => {
  const title = (env: Record<string, string>) => alertTitle("7b", (name) => env[name]);
  assertEquals(title({ SLURM_JOB_ID: "9", MLP_TASK_ID: "t" }), "9_7b");
  assertEquals(title({ KUBERNETES_POD_NAME: "pod-0-1" }), "pod_7b");
  assertEquals(title({ MLP_TASK_ID: "t" }), "t_7b");
  assertEquals(title({}), "none_7b");
});

Deno.test("sendFeishuMessage() posts the message as the service expects it", async () => {
  const received: unknown[] = [];
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
    received.push(request.method, request.headers.get("content-type"), await request.json());
    return new Response("{}");
  });
  const sent = await sendFeishuMessage({
    address: `http://127.0.0.1:${server.addr.port}/hook`,
    title: "9_7b",
    text: "Loss spike",
    now: () => 1_700_000_000_900,
  });
  await server.shutdown();
  assertEquals(sent, true);
  assertEquals(received, ["POST", "application/json", {
    timestamp: 1_700_000_000,
    msg_type: "post",
    content: { post: { zh_cn: { title: "9_7b", content: [[{ tag: "text", text: "Loss spike" }]] } } },
  }]);
});

Deno.test("sendFeishuMessage() tells of a refusal, of silence and of a closed port, and never throws", async () => {
  const errors: string[] = [];
  const silent = Promise.withResolvers<Response>();
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, (request) => {
    return request.url.endsWith("/silent") ? silent.promise : new Response("no such hook", { status: 404 });
  });
  const address = `http://127.0.0.1:${server.addr.port}`;
  const send = (path: string) =>
    sendFeishuMessage({
      address: address + path,
      title: "t",
      text: "",
      timeoutMilliseconds: path === "/silent" ? 50 : 30_000,
      onError: (message) => errors.push(message),
    });
  assertEquals([await send("/absent"), await send("/silent")], [false, false]);
  silent.resolve(new Response());
  await server.shutdown();
  assertEquals(await send("/closed"), false);
  assertMatch(errors[0], /404 no such hook/);
  assertMatch(errors[1], /timed out|timeout/i);
  assertEquals(errors.length, 3);
});

Deno.test("claimAlert() lets one of many ranks send the same alert", () => {
  const folder = Deno.makeTempDirSync();
  try {
    const path = `${folder}/alert.log`;
    const texts = ["a\nb", "a\nb", "c", "step 12", "step 1"];
    assertEquals(texts.map((text) => claimAlert(path, text)), [true, false, true, true, true]);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
