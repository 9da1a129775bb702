"""The page: pictures animated in a browser, or by HTTP (docs/page.md). Gradio draws it; `app` alone knows Gradio."""
