import { z } from "zod";
import { bool, int, refused, textOrNull } from "../field.ts";

const alerting = "monitor.alert.enable_feishu_alert";

/** Whom to tell, and where to write for dashboards. */
export const monitorSchema = z.strictObject({
  alert: z.strictObject({
    enable_feishu_alert: refused(bool().default(false), "Send alerts to a Feishu chat."),
    feishu_alert_address: refused(textOrNull().default(null), "Address of the chat's web hook.", {
      onlyWith: alerting,
    }),
    light_monitor_address: refused(textOrNull().default(null), "Address that heartbeats are sent to."),
    alert_file_path: refused(textOrNull().default(null), "File that keeps an exception from being reported twice.", {
      onlyWith: alerting,
    }),
  }),
  tensorboard: z.strictObject({
    queue_max_length: refused(int({ min: 1 }).default(1), "Steps that are held before they are written.", {
      onlyWith: "tensorboard_folder",
    }),
  }),
}).describe("Alerts and dashboards");
