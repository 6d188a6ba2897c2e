"""Web app of a run: compare the actors, vote blindly, try ratios, follow and start training.

The page is served before torch is imported: models are loaded behind it.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import gradio as gr

from lite_c2f.chat import Chat
from lite_c2f.chat.folder_names import checked_folder
from lite_c2f.chat.remote_servers import check_servers
from lite_c2f.evaluation.actor_hashes import actor_hashes
from lite_c2f.runs.manifest import inputs_of
from lite_c2f.runs.model_pair import TOY
from lite_c2f.runtime.address import is_loopback
from lite_c2f.runtime.lingering_threads import add_lingering
from lite_c2f.smollm import CONFIG as SMOLLM_CONFIG
from lite_c2f.smollm import SMOLLM
from lite_c2f.toy import CONFIG as TOY_CONFIG
from lite_c2f.ui.address import DEFAULT_RUN, check_address, find_run, parse_auth, wait_for_port
from lite_c2f.ui.answering import NOTIFYING, QUICK, Served
from lite_c2f.ui.api import add_api
from lite_c2f.ui.blind import blind_view
from lite_c2f.ui.compare import compare_view
from lite_c2f.ui.escaping import escape
from lite_c2f.ui.evaluation_view import evaluation_view
from lite_c2f.ui.formulas import katex_address
from lite_c2f.ui.loading import REFRESH_LOADING, load_behind
from lite_c2f.ui.page_session import PageSessions
from lite_c2f.ui.prompt_choice import Prompts
from lite_c2f.ui.prompt_sets import PromptSets
from lite_c2f.ui.ratio_grid import ratio_grid_view
from lite_c2f.ui.run_view import run_view
from lite_c2f.ui.serve import launch
from lite_c2f.ui.tour import tour
from lite_c2f.ui.vote_results import vote_counts
from lite_c2f.ui.waiting import WaitedFor, has_actors, loaded_when_ready, waiting_page

HERE = Path(__file__).parent
WHAT_TO_DO = (
    "Ask a question and compare three answers: a base model after RL, an instruct model with what RL taught it, "
    "and the same without."
)
LOG_OUT = '<a href="logout?all_session=false">Log out</a>'  # of this browser alone: all have the same user
SKIP = '<a class="skip" href="#prompt">Skip to the question</a>'  # page.js moves the focus there
CONFIGS = Path("configs")  # of the folder the app is started in


def build(run: str | Path | Chat, *, merged: bool = False, may_train: bool = False, login: bool = False) -> gr.Blocks:
    """The page, not yet served. Raises RunError for an unfinished run; theme, CSS and JavaScript are `launch`'s.

    merged: the Fine Actor at the merged ratio is the published model. may_train: visitors may start and stop training;
    login: they have logged in, and may log out.
    """
    chat = run if isinstance(run, Chat) else Chat(run, merged=merged)
    folder = chat.run.resolve()
    try:
        made_of = actor_hashes(chat.config, folder)
    except OSError:
        chat.load()  # which says what is missing, and what to do
        raise
    facts = {"name": folder.name, "inputs": inputs_of(folder), "made_of": made_of}
    served = Served(chat, PageSessions(), folder / "app", facts)
    with gr.Blocks(title=f"lite_c2f: {folder.name}", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_about(chat, folder.name, login), elem_id="about", elem_classes="about")
        if not chat.is_loaded:
            page.load(partial(_loading, chat), None, gr.HTML(elem_id="loading", padding=False), **NOTIFYING)
        identity = [gr.Textbox(elem_classes="unseen", label=name) for name in ("owner", "session")]
        with gr.Tabs():
            with gr.Tab("Compare"):
                compare_view(served, identity)
            with gr.Tab("Blind vote") as voting:
                results = blind_view(served, identity)
            with gr.Tab("Ratios"):
                ratio_grid_view(served)
            with gr.Tab("Evaluation"):
                evaluation_view(Prompts(folder, PromptSets(chat, folder / "app" / "prompt-sets", facts)), identity[0])
            with gr.Tab("Runs"):
                run_view(folder.parent, folder.name, configs(folder), may_train)
        # Votes of Compare, and of others.
        voting.select(lambda: vote_counts(served), None, results, **QUICK)
        add_api(served)

        def close(request: gr.Request) -> None:
            served.pages.close(request.session_hash)

        page.unload(close)
    return page


def _about(chat: Chat, name: str, login: bool) -> str:
    model = chat.config.model
    names = dict.fromkeys(Path(name).name for name in (model.base, model.instruct))  # once where both are one model
    pair = "the toy pair" if model.base == TOY else " and ".join(names)
    about = f"{name}: {pair}, merged at ratio {chat.ratio:g}"
    katex = escape(katex_address())  # page.js imports it when there is a formula
    return (
        f'{SKIP}<h1 data-katex="{katex}">lite_c2f</h1>'
        f"<span>{escape(about)}</span>{LOG_OUT if login else ''}{tour()}<p>{WHAT_TO_DO}</p>"
    )


async def _loading(chat: Chat) -> AsyncIterator[str]:
    """What the page shows above its tabs while the models are loaded. It waits in no thread: many may wait at once."""
    while text := chat.loading:
        yield f'<p class="hint">{escape(text[0].upper() + text[1:])}. You can ask already.</p>'
        await asyncio.sleep(REFRESH_LOADING)
    yield ""


def configs(run: Path | None) -> dict[str, Path]:
    """What a run can be started from: as this one was, embedded models, configs/*.yaml where the app was started."""
    files = {path.stem: path.resolve() for path in sorted(CONFIGS.glob("*.yaml"))}
    own = {f"as {run.name}": run / "config.yaml"} if run is not None and (run / "config.yaml").is_file() else {}
    return {**own, "toy": TOY_CONFIG, SMOLLM: SMOLLM_CONFIG, **files}


def serve(
    run: str | Path | None,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: str | None = None,
    root_path: str | None = None,
    *,
    merged: bool = False,
    also: Sequence[str] = (),
    models: str | Path | None = None,
    training: bool | None = None,
    prevent_thread_lock: bool = False,
) -> gr.Blocks:
    """What `lite-c2f app` and `python app.py` do: serve the page of a run until interrupted.

    run: its actors are loaded once they are trained, until when a page without them is served; None is runs/toy, or
    else the first run in runs/ that has actors. auth: "user:password", needed to serve other machines. also, models:
    addresses of servers, and a folder, whose models visitors may ask, as of `Chat`. training: may visitors start and
    stop training? None: where only this machine is served. Raises ConfigError, and RunError for a path that is no run,
    before anything is loaded.
    """
    pair = parse_auth(auth)
    check_servers(also)
    checked_folder(models)
    check_address(host, port, pair, root_path)
    folder = find_run(run)
    may_train = is_loopback(host) and not root_path if training is None else training
    css = (HERE / "page.css").read_text(encoding="utf-8")
    scripts = [(HERE / name).read_text(encoding="utf-8") for name in ("page.js", "formulas.js", "charts.js", "tour.js")]
    js = "() => {" + "".join(f"({script.strip()})();" for script in scripts) + "}"

    def show(page: gr.Blocks, about: Path, prevent_thread_lock: bool) -> gr.Blocks:
        return launch(page, str(about), host, port, pair, root_path, css, js, prevent_thread_lock)

    if folder is not None and has_actors(folder):
        chat = Chat(folder, merged=merged, also=also, models=models, wait=False)
    else:
        runs = (folder or DEFAULT_RUN).resolve().parent
        waited = WaitedFor(runs, folder.resolve().name if folder else None, {})
        offered = configs(folder.resolve() if folder else None)
        without_actors = show(waiting_page(waited, offered, may_train, LOG_OUT if pair else ""), runs, True)
        try:
            chat = loaded_when_ready(waited, merged, also, models)
        finally:
            without_actors.close(verbose=False)
        wait_for_port(host, port)
    page = show(build(chat, may_train=may_train, login=pair is not None), chat.run, True)
    if not chat.is_loaded:
        try:
            load_behind(chat)
        except BaseException:
            chat.end_waiting("the server has ended")
            page.close(verbose=False)
            raise
        print("The models are loaded", flush=True)
    if not prevent_thread_lock:
        page.block_thread()
        add_lingering([threading.main_thread()])  # in any case: some of Gradio's threads may be within PyTorch
    return page
