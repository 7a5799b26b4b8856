// The canvas in the node PixArt Sketch. What is drawn is kept in the workflow, as a PNG in a data URL.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const WIDGET = "PIXART_SKETCH";
const DRAWING = /^data:image\/png;base64,[A-Za-z0-9+/]+=*$/; // nothing else is loaded, so no address is ever asked
const STEPS_BACK = 50;
const PAPER = "black";
const INK = "white";

/** A drawing of width x height pixels, and the ones before it. `begins` hears of a stroke, an undo or a clear at its
 * start, `changed` of everything that it changes. */
class Drawing {
    constructor(begins, changed) {
        this.canvas = document.createElement("canvas");
        this.pen = this.canvas.getContext("2d", { alpha: false });
        this.begins = begins;
        this.changed = changed;
        this.past = [];
        this.text = "";
        this.fresh = true; // the text says what the canvas shows
        this.turn = 0; // numbers the redrawings, of which only the last counts
        this.loading = false;
        this.canvas.width = 0;
    }

    /** The drawing as text; "" where nothing was ever drawn. */
    get value() {
        if (!this.fresh) {
            this.text = this.canvas.toDataURL("image/png");
            this.fresh = true;
        }
        return this.text;
    }

    /** Show a drawing that comes from a workflow. The text is kept as it is, whatever it says. */
    set value(text) {
        this.text = String(text ?? "");
        this.fresh = true;
        this.redraw();
    }

    resize(width, height) {
        if (this.canvas.width === width && this.canvas.height === height) return;
        const text = this.value;
        this.canvas.width = width;
        this.canvas.height = height;
        this.value = text;
    }

    async redraw() {
        const mine = ++this.turn;
        this.loading = true;
        const image = new Image();
        if (DRAWING.test(this.text)) { // however long: what this canvas wrote must be shown again
            image.src = this.text;
            await image.decode().catch(() => {}); // the server says what is wrong with it
        }
        if (mine !== this.turn) return;
        this.blank();
        if (image.naturalWidth) this.cover(image);
        this.loading = false;
    }

    blank() {
        this.pen.fillStyle = PAPER;
        this.pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
    }

    /** Scaled until it covers the canvas and cut evenly, as the node does it. */
    cover(image) {
        const { width, height } = this.canvas;
        const scale = Math.max(width / image.naturalWidth, height / image.naturalHeight);
        const [wide, high] = [image.naturalWidth * scale, image.naturalHeight * scale];
        this.pen.drawImage(image, (width - wide) / 2, (height - high) / 2, wide, high);
    }

    /** A line from point to point, in pixels of the drawing; a dot where both are one. */
    line(from, to, width, ink) {
        this.pen.strokeStyle = ink;
        this.pen.lineWidth = width;
        this.pen.lineCap = this.pen.lineJoin = "round";
        this.pen.beginPath();
        this.pen.moveTo(...from);
        this.pen.lineTo(...to);
        this.pen.stroke();
        this.fresh = false;
    }

    /** Call before a change that undo takes back. */
    remember() {
        this.begins();
        this.past.push(this.value);
        if (this.past.length > STEPS_BACK) this.past.shift();
    }

    undo() {
        if (!this.past.length) return;
        this.begins();
        this.value = this.past.pop();
        this.changed();
    }

    clear() {
        if (this.value === "") return;
        this.remember();
        this.value = "";
        this.changed();
    }
}

/** Is the node in the workflow that the page shows, at its top or in a subgraph? */
function isShown(node) {
    const root = app.rootGraph ?? app.graph;
    const inside = node.graph === root || root.subgraphs?.get(node.graph?.id) === node.graph;
    return inside && node.graph.getNodeById(node.id) === node;
}

/** Runs the workflow again while the drawing changes: one run at a time, the last state always. A run that fails is
 * not tried again before the next stroke: the page shows an error each time. */
class Follower {
    constructor() {
        this.asking = null; // the node whose drawing waits for a run
        this.posting = false;
        this.taken = false; // the server took what was posted last
        this.failed = false;
        this.free = true; // the server answers, and nothing is in its queue
        api.addEventListener("status", ({ detail }) => {
            this.free = detail?.exec_info?.queue_remaining === 0; // nothing at all while the connection is lost
            this.next();
        });
        api.addEventListener("execution_error", () => this.fail());
    }

    fail() {
        this.failed = true;
        this.asking = null;
    }

    ask(node) {
        if (this.failed) return;
        this.asking = node;
        this.next();
    }

    async next() {
        if (!this.asking || this.posting || !this.free) return;
        const node = this.asking;
        this.asking = null;
        if (!isShown(node)) return; // the queue takes the workflow that is shown, by now another one
        this.posting = true;
        this.taken = false;
        try {
            await app.queuePrompt(0, 1);
        } finally {
            this.posting = false;
        }
        if (!this.taken) this.fail();
        this.next();
    }
}

const follower = new Follower();

/** A step of the page's own undo, of which its "Run (On Change)" hears: by itself the page looks for changes when a
 * mouse button is let go, and a click comes after that. */
function step(act) {
    app.canvas.emitBeforeChange();
    try {
        act();
    } finally {
        app.canvas.emitAfterChange();
    }
}

function button(label, tooltip, act) {
    const made = document.createElement("button");
    Object.assign(made, { textContent: label, title: tooltip, type: "button", onclick: () => step(act) });
    made.style.cssText = "padding:2px 8px;border:1px solid #666;border-radius:4px;background:#333;color:#ddd;cursor:pointer";
    return made;
}

function toggle(label, tooltip, on, act) {
    const made = button(label, tooltip, () => show(!on));
    const show = (state) => {
        on = state;
        made.style.background = on ? "#3f789e" : "#333";
        made.setAttribute("aria-pressed", String(on));
        act(on);
    };
    show(on);
    return { element: made, show };
}

function slider(tooltip, value, act) {
    const made = document.createElement("input");
    Object.assign(made, { type: "range", min: 1, max: 64, step: 1, value, title: `${tooltip}: ${value}` });
    made.style.cssText = "flex:1;min-width:40px";
    made.oninput = () => {
        made.title = `${tooltip}: ${made.value}`;
        act(Number(made.value));
    };
    return { element: made, show: (state) => { made.value = state; made.oninput(); } };
}

/** Where a pointer is, in pixels of the drawing. The canvas is shown whole, in the middle of its box. */
function place(canvas, event) {
    const box = canvas.getBoundingClientRect();
    const scale = Math.min(box.width / canvas.width, box.height / canvas.height);
    return [(event.clientX - box.left - (box.width - canvas.width * scale) / 2) / scale,
            (event.clientY - box.top - (box.height - canvas.height * scale) / 2) / scale];
}

/** Draws with the left button, a finger or a pen. The stroke is kept before the page hears that the button is up. */
function draws(drawing, tool) {
    const { canvas } = drawing;
    let last = null;
    let drawer = null; // the one pointer that draws: a palm or a second finger neither draws nor ends the stroke
    const to = (point) => {
        drawing.line(last, point, tool.width(), tool.erases() ? PAPER : INK);
        last = point;
    };
    canvas.addEventListener("pointerdown", (event) => {
        if (event.button === 1) return app.canvas.processMouseDown(event);
        if (event.button !== 0 || drawing.loading) return;
        event.stopPropagation();
        if (last) return;
        drawer = event.pointerId;
        canvas.setPointerCapture(event.pointerId);
        drawing.remember();
        last = place(canvas, event);
        to(last);
    });
    canvas.addEventListener("pointermove", (event) => {
        if (event.buttons & 4) return app.canvas.processMouseMove(event);
        if (!last || event.pointerId !== drawer) return;
        event.stopPropagation();
        const between = event.getCoalescedEvents?.() ?? [];
        for (const each of between.length ? between : [event]) to(place(canvas, each));
        drawing.changed();
    });
    const end = (event) => {
        if (event.button === 1) return app.canvas.processMouseUp(event);
        if (!last || event.pointerId !== drawer) return;
        last = null;
        drawing.changed();
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("wheel", (event) => {
        if (!window.LiteGraph.vueNodesMode) app.canvas.processMouseWheel(event);
    });
}

/** Pen width, tool and live are kept with the node in the workflow; only the drawing goes to the server. */
function build(node, drawing) {
    const settings = () => (node.properties ??= {});
    const pen = slider("Width of the pen in pixels", 6, (width) => { settings().pen = width; });
    const eraser = toggle("Eraser", "Draw in black instead of white", false, () => {});
    const live = toggle("Live", "Run the workflow while you draw", false, (on) => { settings().live = on; });
    const undo = button("Undo", "Remove the last stroke", () => drawing.undo());
    const clear = button("Clear", "Start over with an empty canvas; Undo restores the drawing", () => drawing.clear());
    const bar = document.createElement("div");
    bar.style.cssText = "display:flex;gap:4px;align-items:center;font-size:12px";
    bar.append(pen.element, eraser.element, undo, clear, live.element);
    for (const kind of ["pointerdown", "pointermove", "pointerup"])
        bar.addEventListener(kind, (event) => event.stopPropagation());
    drawing.canvas.style.cssText =
        "flex:1;min-height:0;width:100%;object-fit:contain;cursor:crosshair;touch-action:none;background:#222";
    const whole = document.createElement("div");
    whole.className = "pixart-sketch";
    whole.style.cssText = "display:flex;flex-direction:column;gap:4px;user-select:none;overflow:hidden";
    whole.append(bar, drawing.canvas);
    draws(drawing, { width: () => settings().pen ?? 6, erases: () => eraser.element.getAttribute("aria-pressed") === "true" });
    return { whole, restore: () => { pen.show(settings().pen ?? 6); live.show(settings().live ?? false); } };
}

function sketch(node, name) {
    const begins = () => { follower.failed = false; };
    const drawing = new Drawing(begins, () => {
        widget.callback?.(drawing.value);
        if (node.properties?.live) follower.ask(node);
    });
    const { whole, restore } = build(node, drawing);
    const size = (side) => node.widgets.find((each) => each.name === side)?.value ?? 512;
    const fit = () => drawing.resize(size("width"), size("height"));
    const widget = node.addDOMWidget(name, WIDGET, whole, {
        getValue: () => drawing.value,
        setValue: (text) => {
            fit();
            if (text !== drawing.value) drawing.value = text;
        },
        getMinHeight: () => 240,
        hideOnZoom: false,
    });
    // Called when the server took the workflow; what queuePrompt returns differs between pages.
    widget.afterQueued = () => { follower.taken = true; };
    for (const side of node.widgets.filter((each) => ["width", "height"].includes(each.name))) {
        const before = side.callback;
        side.callback = function (...given) {
            before?.apply(this, given);
            fit();
        };
    }
    const configured = node.onConfigure;
    node.onConfigure = function (...given) {
        configured?.apply(this, given);
        fit();
        restore();
    };
    fit();
    return { widget, minWidth: 340, minHeight: 380 };
}

app.registerExtension({
    name: "PixArt.Sketch",
    getCustomWidgets: () => ({ [WIDGET]: sketch }),
});
