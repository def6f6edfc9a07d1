@echo off
rem Starts Tavern Proxy; the first time it installs what is needed, into .venv beside this file. run.bat --help
setlocal DisableDelayedExpansion
set "root=%~dp0"
set "check=import sys; sys.exit(sys.version_info < (3, 11))"

if not exist "%root%.venv\ready" goto search
"%root%.venv\Scripts\python.exe" -I -S -c "%check%" >nul 2>&1
if errorlevel 0 if not errorlevel 1 goto venv

:search
set "version="
for %%v in (3.14 3.13 3.12 3.11 3) do (
    py -%%v -I -S -c "%check%" >nul 2>&1
    if errorlevel 0 if not errorlevel 1 if not defined version set "version=-%%v"
)
if defined version goto py
rem "call", because python may be a batch file; where there is no Python, Windows has a stand-in that only fails
call python -I -S -c "%check%" >nul 2>&1
if errorlevel 0 if not errorlevel 1 goto python

echo.
echo Tavern Proxy needs Python 3.11 or newer, and found none on this computer.
echo.
echo   1. Open https://www.python.org/downloads/ and get Python.
echo   2. In its installer, tick "Add python.exe to PATH".
echo   3. Start run.bat again.
echo.
set "code=1"
goto stopped

:venv
"%root%.venv\Scripts\python.exe" "%root%util\bootstrap.py" %*
goto ended

:py
py %version% "%root%util\bootstrap.py" %*
goto ended

:python
call python "%root%util\bootstrap.py" %*

:ended
set "code=%errorlevel%"

:stopped
rem a window that was opened by a double click stays, so that its last words can be read
if not "%code%"=="0" pause
exit /b %code%
