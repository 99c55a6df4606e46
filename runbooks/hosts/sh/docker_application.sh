#!/bin/sh
# docker_application.sh SOCKET FILTERS PYTHON PROGRAM START LAST
# As application.sh: runs a program in the application's own Python, in a container of its services, as that one's user.
engine "$1"
id=''
inside "$2"
python=$3 program=$4 start=$5 last=$6
docker exec "$id" "$python" -c '' >/dev/null 2>&1
case $? in
126 | 127)
    docker inspect --format "celery_python is $python, and the container {{.Name}}, of the image {{.Config.Image}}, cannot \
run that: name the Python that has the application in this image" "$id" >&2
    exit 1
    ;;
esac
printf %s "$program" | docker exec -i "$id" "$python" -B -c "$start" 2>&1 | sed "/^$last/q"
