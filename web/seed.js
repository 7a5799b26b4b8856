// Nodes whose work is kept and continued begin with a seed that stays: the page's own choice is a new one for each run.
import { app } from "../../scripts/app.js";

const KEEPING = new Set(["PixArtCompare", "PixArtReNO"]);

app.registerExtension({
    name: "PixArt.Seed",
    nodeCreated(node) {
        if (!KEEPING.has(node.comfyClass)) return;
        // A saved workflow sets its own value after this.
        const control = node.widgets?.find((widget) => widget.name === "control_after_generate");
        if (control) control.value = "fixed";
    },
});
