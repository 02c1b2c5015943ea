import { z } from "zod";
import { bool, int, refused, textOrNull, works } from "../field.ts";

/** Why an address cannot work, if it cannot. */
function notAnAddress(value: unknown): string | undefined {
  if (value === null) return undefined;
  const url = URL.parse(value as string);
  return url?.protocol === "http:" || url?.protocol === "https:"
    ? undefined
    : "it is no address; https://open.feishu.cn/open-apis/bot/v2/hook/… would work";
}

/** Whom to tell, and where to write for dashboards. */
export const monitorSchema = z.strictObject({
  alert: z.strictObject({
    enable_feishu_alert: works(bool().default(false), "Send alerts, and word of start and end, to a Feishu chat."),
    feishu_alert_address: works(
      textOrNull().default(null),
      "Address of the chat's web hook. TROUPE_NET=,HOST in the environment opens the network to its host.",
      { refuse: notAnAddress },
    ),
    light_monitor_address: refused(textOrNull().default(null), "Address that heartbeats are sent to."),
    alert_file_path: works(
      textOrNull().default(null),
      "File of the alerts of this run; it keeps one from being sent twice.",
    ),
  }),
  tensorboard: z.strictObject({
    queue_max_length: works(int({ min: 1 }).default(1), "Steps that are held before TensorBoard's files get them."),
  }),
}).describe("Alerts and dashboards");
